"""Replays prices against an engine with accounts that trade, and verifies afterwards what the engine recorded.

::

    prices           reads CSV files, or makes a path of its own        -> PriceSeries
    engine_process   an engine of one's own, with its stores            -> RunningEngine
    engine_client    the engine's HTTP interface
    traders          what the accounts do next
    replay           posts the marks, sends the trades, keeps the tally -> ReplayResult
    evidence         what the stores hold afterwards                    -> Evidence
    mark_path        mark prices in the order in which they came into force
    checks           pure functions from evidence to verdicts           -> Check
    liquidation_checks, settlement_checks  what the checks ask of single events
    report           the result as plain text
"""
