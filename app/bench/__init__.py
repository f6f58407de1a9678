"""Load for a running server, and what it says of its capacity. Knows HTTP alone, no model."""
