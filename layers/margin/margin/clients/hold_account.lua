-- Lets nothing commit on an account for some time, or again; answers until when it is held, which names this very hold.
-- A hold that was ended stays, as "ended:" and its name: whoever read the account before sees that something came in between, and
-- no clock that goes back brings it into force again.
-- ARGV: account id, for how many microseconds; or account id, '0', the hold to end
local stored = text(redis.call('HGET', key('holds'), ARGV[1]))
local hold
if ARGV[2] == '0' then
  if stored ~= ARGV[3] then
    return {'OK', stored}
  end
  hold = 'ended:' .. stored
else
  local until_us = tonumber(now_us()) + tonumber(ARGV[2])
  if tonumber(string.match(stored, '%d+')) == until_us then
    until_us = until_us + 1
  end
  hold = string.format('%.0f', until_us)
end
redis.call('HSET', key('holds'), ARGV[1], hold)
return {'OK', hold}
