"""Quantize a model with proof: planned to the byte, measured before it is published, chosen by what was measured."""

from miyabi_llm.quantize.run import plan, quantize
from miyabi_llm.quantize.source import Source, open_source
from miyabi_llm.quantize.values import Made, Measured, Order, Plan, Planned, Quality

__all__ = ["Made", "Measured", "Order", "Plan", "Planned", "Quality", "Source", "open_source", "plan", "quantize"]
