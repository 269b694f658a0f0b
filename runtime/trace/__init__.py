"""Traces: one JSON object per line for each exit, exception, interrupt and port access."""

from runtime.trace.jsonl import TRACE_SCHEMA, JsonLinesTracer, Tracer

__all__ = ["TRACE_SCHEMA", "JsonLinesTracer", "Tracer"]
