"""What `outputd doctor` looks at, one module a subject. Never repairs anything: it says what would."""
