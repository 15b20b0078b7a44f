"""Events to bytes: JSON and InfluxDB line protocol."""
