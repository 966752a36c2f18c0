"""From samples to metrics: a collector whose memory does not grow, and figures with their intervals."""

from miyabi_llm.bench.stats.collect import Collector
from miyabi_llm.bench.stats.compat import vllm
from miyabi_llm.bench.stats.figures import figures
from miyabi_llm.bench.stats.measure import metrics
from miyabi_llm.bench.stats.values import Better, Counts, Measured, Metric, Quantile

__all__ = ["Better", "Collector", "Counts", "Measured", "Metric", "Quantile", "figures", "metrics", "vllm"]
