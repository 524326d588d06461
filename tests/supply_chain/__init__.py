"""What the engine is made of: installs, advisories, bills of materials, and strings that look like secrets."""
