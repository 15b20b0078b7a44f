"""OpenTelemetry to InfluxDB, Kafka and JSON Lines, without a Collector."""
