"""Delivery: records reach their sink at least once, and what does not is counted."""
