"""Several evaluations of the same cases side by side: paired differences, their intervals and tests."""
