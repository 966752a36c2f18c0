"""Routing: which model answers a request, and what may never leave this machine. Claude first, local always."""
