"""The programs we call: found, judged, installed."""
