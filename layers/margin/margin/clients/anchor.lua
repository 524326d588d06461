-- Anchors an evaluated account anew: its triggers, no new version; nothing when the account or the rules of its symbols have changed since it
-- was read. Funding may have moved: a trigger is kept without its shift, and stands for the same account as before.
-- ARGV: partitions, account id, expected version, triggers, those of the warning and versions of instruments as JSON, epoch ('' for any),
-- whether it has been warned
local problem = not_loaded(ARGV[1], ARGV[5])
if problem then
  return {'NOT_LOADED', problem}
end
if text(redis.call('HGET', key('versions'), ARGV[2])) ~= ARGV[3] then
  return {'CONFLICT', 'account'}
end
local triggers, warnings, instruments = unpack(cjson.decode(ARGV[4]))
if not same_instruments(instruments) then
  return {'CONFLICT', 'instrument'}
end
mark_warned(ARGV[2], ARGV[6])
return {'OK', set_triggers(ARGV[2], triggers, warnings) and 1 or 0}
