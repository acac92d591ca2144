"""The router in a network that drops, delays, copies and breaks: simulated, replayed by seed."""
