-- Puts pause switches in place, each only if no newer change is in force, so that whoever comes late changes nothing. The same change is written again:
-- an id can be that of a change which history has lost since.
-- It does not look at the marker: a switch can be set while the state is rebuilt, and an older one is replaced when the partition is opened.
-- ARGV: over, after, to, then name, state, id in turn. Ids up to `over` give way to these changes: history does not have them for these names and never will.
-- With `after` they are all changes of history from there to `to`; '' and '' say that they are not.
local over = tonumber(ARGV[1])
local stood = 0
for i = 4, #ARGV, 3 do
  local name, state, id = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local present = tonumber(redis.call('HGET', key('control_ids'), name) or '0')
  if present > math.max(tonumber(id), over) then
    stood = math.max(stood, present)
  else
    redis.call('HSET', key('control_ids'), name, id)
    -- One that was never set is active: what is left in `controls` is what somebody stopped.
    if state == 'active' then
      redis.call('HDEL', key('controls'), name)
    else
      redis.call('HSET', key('controls'), name, state)
    end
  end
end

-- Emptied since `after` was read, the partition lacks what came before it, and must not claim to have it. Nor what it has not let in.
local aligned_to = redis.call('GET', key('controls_aligned_to')) or '0'
if ARGV[2] ~= '' and stood == 0 and tonumber(aligned_to) >= tonumber(ARGV[2]) and tonumber(ARGV[3]) > tonumber(aligned_to) then
  aligned_to = ARGV[3]
  redis.call('SET', key('controls_aligned_to'), aligned_to)
end
return {'OK', aligned_to, string.format('%.0f', stood)}
