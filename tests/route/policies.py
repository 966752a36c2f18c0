"""Policies of the tests."""

BOTH = """
version = 1
mode = "claude"

[targets.claude]
kind = "claude"
url = "http://127.0.0.1:9/"
key_env = "ANTHROPIC_API_KEY"

[targets.local]
kind = "local"
url = "http://127.0.0.1:8080/v1"
aliases = ["private"]
context = 32768

[[rules]]
name = "bulk"
when = { hint = ["bulk"] }
use = "local"
fallback = ["claude"]

[privacy]
default_verdict = "public"
deny_globs = ["**/secrets/**", "*.pem"]
projects = [{ match = "bank-*", verdict = "confidential" }]
# end of policy
"""
