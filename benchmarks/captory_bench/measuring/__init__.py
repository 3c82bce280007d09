"""What all benchmarks measure with.

- What is sent: `workload`, `arrivals`; of what: `subject`.
- The server: `served`, `stats`. The same graphs in this process: `graphs`, `denoising`, `crews`, `bare_loop`,
  `request_level`.
- What came of it: `outcome`; whether it was right: `checks`; whether it is enough: `targets`; where: `machine`.
- For people: `tables`, `command_line`.
"""
