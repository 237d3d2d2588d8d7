"""What happens, in which order. No logic, no torch, no YAML."""
