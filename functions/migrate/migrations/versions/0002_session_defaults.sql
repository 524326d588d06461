-- What holds for every session of the database from its next connection on. A role that does not own the database may not set it, and a server on
-- another system may not know it: the engine works without, and an operator can set it (the owner: alter database ... set ...).
do $$
declare
    setting text;
begin
    foreach setting in array array[
        -- The fence relies on it: a statement sees what was committed while an earlier one of its transaction waited.
        'default_transaction_isolation = ''read committed''',
        -- Longer than any request waits: whoever waits for a lock gives up although its client has long hung up.
        'lock_timeout = ''3s''',
        'idle_in_transaction_session_timeout = ''60s''',
        -- A client that hangs up at its deadline leaves a statement at work, and a connection in use, until the server looks.
        'client_connection_check_interval = ''1s''',
        -- A machine that is gone hangs up nothing: its sessions, and the locks of an opening, end within half a minute.
        'tcp_keepalives_idle = 10',
        'tcp_keepalives_interval = 5',
        'tcp_keepalives_count = 3',
        'tcp_user_timeout = ''25s'''
    ]
    loop
        begin
            execute 'alter database ' || quote_ident(current_database()) || ' set ' || setting;
        exception when insufficient_privilege or undefined_object or invalid_parameter_value then
            raise warning using message = concat('not set for the database: ', setting, ': ', sqlerrm);
        end;
    end loop;
end $$;
