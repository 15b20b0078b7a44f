"""A Flask application that knows nothing of telemetry."""

import logging

from flask import Flask

app = Flask(__name__)
logging.basicConfig(level=logging.INFO)
logger = logging.getLogger("shop")


@app.get("/ready")
def ready():
    return "yes"


@app.get("/orders/<int:number>")
def order(number):
    logger.info("order %d", number)
    return {"order": number}


@app.get("/fail")
def fail():
    raise ValueError("no stock")
