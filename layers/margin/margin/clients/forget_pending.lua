-- Last part of step 4: takes events that are in history off the heads of accounts' pending lists.
-- An entry is known by its SHA-1 and not by its id: after Redis went back unnoticed another event can have the same id.
-- ARGV: JSON, a list of {account id, {SHA-1 of the entries of the stored events}}, all as texts
for _, taken in ipairs(cjson.decode(ARGV[1])) do
  local account_id, stored = taken[1], {}
  for _, entry in ipairs(taken[2]) do
    stored[entry] = true
  end
  local list = key('pending:' .. account_id)
  local head = redis.call('LINDEX', list, 0)
  while head and stored[redis.sha1hex(head)] do
    redis.call('LPOP', list)
    -- What stood in the way does not any more; what may stand in it now has tries of its own.
    redis.call('HDEL', key('blocked'), account_id)
    head = redis.call('LINDEX', list, 0)
  end
  if head then
    local at_us = string.match(head, '"at_us":(%d+)')
    redis.call('ZADD', key('pending'), at_us, account_id)
  else
    redis.call('ZREM', key('pending'), account_id)
    redis.call('HDEL', key('awaits_history'), account_id)
  end
end
return 'OK'
