"""A FastAPI application that knows nothing of telemetry."""

from fastapi import FastAPI

app = FastAPI()


@app.get("/ready")
def ready():
    return "yes"


@app.get("/orders/{number}")
def order(number: int):
    return {"order": number}
