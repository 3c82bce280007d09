"""Measurements: a folder for each; its `command.py` is what `commands.py` puts into `captory bench`.

- `serve`, `sharing`, `guidance`, `load`, `growth`, `peers`: the server on real graphs, from outside.
- `writer`: prompts of the embedded writer and of one on vLLM.
- `orchestrator`, `kernels`, `profile`: all but the graphs, and the graphs alone.
- `gpu`: what a GPU reaches, run by itself (`python -m captory_bench.gpu`).
- `suite` runs them all; `page` writes docs/performance.md from their figures.
- `measuring`: what they measure with. Benchmarks import it and never each other.

`measure.py` runs, `report.py` makes figures and tables of what came out.
"""
