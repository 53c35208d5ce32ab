"""From SystemVerilog to area, delay and energy: liberty files, pyosys, gate-level simulation, calibration."""
