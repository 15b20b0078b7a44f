"""A small shop, as anybody would write it: it uses neither OpenTelemetry nor this package."""

import logging
import random
import time

import requests
from flask import Flask, jsonify, request

logging.basicConfig(level=logging.INFO)
logger = logging.getLogger("shop")

app = Flask(__name__)


@app.get("/")
def home():
    return "welcome\n"


@app.get("/prices/<item>")
def price(item):
    time.sleep(random.uniform(0.002, 0.01))
    return jsonify(item=item, cents=100 + len(item))


@app.get("/orders/<int:number>")
def order(number):
    """Log, and ask another service for the price: here this service itself."""
    answer = requests.get(f"{request.host_url}prices/tea", timeout=5)
    cents = answer.json()["cents"]
    logger.info("order %d costs %d cents", number, cents)
    return jsonify(order=number, cents=cents)


@app.get("/report")
def report():
    """Be slow."""
    seconds = random.uniform(0.2, 0.5)
    time.sleep(seconds)
    logger.warning("the report took %.2f s", seconds)
    return jsonify(rows=1000)


@app.get("/fail")
def fail():
    """Fail, as a handler with a bug does."""
    stock = {}
    return jsonify(left=stock["tea"])
