"""What `edm-engine verify` and `Engine.self_check` compare; tests compare the same. Modules are imported by name."""
