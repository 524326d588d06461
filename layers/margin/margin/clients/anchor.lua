-- Anchors an evaluated account anew: its triggers, no new version; nothing when the account has changed since it was read.
-- ARGV: partitions, account id, expected version, triggers as JSON, epoch ('' for any)
local problem = not_loaded(ARGV[1], ARGV[5])
if problem then
  return {'NOT_LOADED', problem}
end
if text(redis.call('HGET', key('versions'), ARGV[2])) ~= ARGV[3] then
  return {'CONFLICT', 'account'}
end
return {'OK', set_triggers(ARGV[2], cjson.decode(ARGV[4])) and 1 or 0}
