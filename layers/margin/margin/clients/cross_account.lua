-- Lets every price cross the triggers of an account, so that whoever looks next evaluates it: sound, whatever rules they were made by.
-- ARGV: account id, guard
local account_id = ARGV[1]
if not guarded(account_id, ARGV[2]) then
  return {'TAKEN_OVER'}
end
for _, symbol in ipairs(redis.call('SMEMBERS', key('positions:' .. account_id))) do
  for _, index in ipairs({'triggers', 'warnings'}) do
    -- XX: one that was warned has no trigger of the warning, and gets none.
    redis.call('ZADD', key(index .. ':' .. symbol .. ':floor'), 'XX', '+inf', account_id)
    redis.call('ZADD', key(index .. ':' .. symbol .. ':ceiling'), 'XX', '-inf', account_id)
  end
end
return {'OK'}
