"""What runs inside a training environment. Only the standard library is imported before a job says so."""
