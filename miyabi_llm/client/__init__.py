"""A client of any OpenAI-compatible server: streams that cannot end early unnoticed, exact prompt counts."""

from miyabi_llm.client.http import Client, base_url
from miyabi_llm.client.values import Delta, Message, Meter, Stats, Usage

__all__ = ["Client", "Delta", "Message", "Meter", "Stats", "Usage", "base_url"]
