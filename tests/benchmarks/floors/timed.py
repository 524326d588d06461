"""Wraps the handler TIMED_HANDLER: prints how long each invocation took but for the service call TIMED_CALL."""

import functools
import importlib
import os
import time

module, attribute = os.environ["TIMED_HANDLER"].split(".")
wrapped = getattr(importlib.import_module(module), attribute)
spent_s = []


@functools.cache
def time_service() -> None:
    if not os.environ["TIMED_CALL"]:
        return
    name, method = os.environ["TIMED_CALL"].split(".")
    service = getattr(importlib.import_module("margin.runtime").engine(), name)
    call = getattr(service, method)

    async def timed(*arguments: object, **named: object) -> object:
        started = time.perf_counter()
        try:
            return await call(*arguments, **named)
        finally:
            spent_s.append(time.perf_counter() - started)

    setattr(service, method, timed)


def handler(event: object, context: object) -> object:
    time_service()
    spent_s.clear()
    started = time.perf_counter()
    answer = wrapped(event, context)
    took_s = time.perf_counter() - started
    print(f"AROUND_MS {(took_s - sum(spent_s)) * 1000:.4f}", flush=True)
    return answer
