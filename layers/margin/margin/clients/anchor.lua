-- Anchors an evaluated account anew: its triggers, no new version; nothing when the account has changed since it was read.
-- ARGV: partitions, account id, expected version, triggers and those of the warning as JSON, epoch ('' for any), whether it has been warned
local problem = not_loaded(ARGV[1], ARGV[5])
if problem then
  return {'NOT_LOADED', problem}
end
if text(redis.call('HGET', key('versions'), ARGV[2])) ~= ARGV[3] then
  return {'CONFLICT', 'account'}
end
mark_warned(ARGV[2], ARGV[6])
local triggers, warnings = unpack(cjson.decode(ARGV[4]))
return {'OK', set_triggers(ARGV[2], triggers, warnings) and 1 or 0}
