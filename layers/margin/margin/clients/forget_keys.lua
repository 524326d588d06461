-- Removes idempotency records of events that history does not know, while nobody commits on their accounts.
-- A record of an event that still waits stays: it is the only thing that keeps a retry from executing it twice.
-- ARGV: guard, then account id, idempotency key, event id in turn
local forgotten = 0
for i = 2, #ARGV, 3 do
  local account_id, name = ARGV[i], key('idempotency:' .. ARGV[i] .. ':' .. ARGV[i + 1])
  if not guarded(account_id, ARGV[1]) then
    return {'TAKEN_OVER'}
  end
  local record = redis.call('GET', name)
  if record and string.match(record, '^%d+') == ARGV[i + 2] and redis.call('EXISTS', key('pending:' .. account_id)) == 0 then
    forgotten = forgotten + redis.call('DEL', name)
  end
end
return {'OK', forgotten}
