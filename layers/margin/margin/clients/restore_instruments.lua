-- Gives a partition, while it is being opened, rules of symbols; where triggers may have been made by others, every account is loaded from the
-- first one on, by this opening or by one that goes on after it.
-- ARGV: token of the opening, '1' where every account has to be loaded, then symbol and rules in turn ('' for none)
local opening = key('opening')
if redis.call('HGET', opening, 'token') ~= ARGV[1] then
  return {'TAKEN_OVER'}
end
if ARGV[2] ~= '' then
  redis.call('HSET', opening, 'reload', '1', 'after', '0', 'accounts', '0', 'loaded', '0', 'sweep_cursor', '0')
end
for i = 3, #ARGV, 2 do
  if ARGV[i + 1] == '' then
    redis.call('HDEL', key('instruments'), ARGV[i])
  else
    redis.call('HSET', key('instruments'), ARGV[i], ARGV[i + 1])
  end
  note_jump_max(ARGV[i], ARGV[i + 1])
  redis.call('HDEL', key('instrument_progress'), ARGV[i])
end
return {'OK'}
