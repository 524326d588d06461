"""The least that a function with FastAPI and Mangum can be: one route that returns a small model."""

import asyncio

from fastapi import FastAPI
from mangum import Mangum
from pydantic import BaseModel


class Answer(BaseModel):
    account_id: int
    balance: str


app = FastAPI(openapi_url=None)


@app.get("/floor")
async def read_floor() -> Answer:
    return Answer(account_id=1, balance="100000")


asyncio.set_event_loop(asyncio.new_event_loop())
handler = Mangum(app, lifespan="off")
