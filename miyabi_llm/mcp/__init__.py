"""Local models as tools of an MCP host: `miyabi-llm mcp`. Imports the SDK only when one of its modules is imported."""
