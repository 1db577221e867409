"""How fast xskd is, next to what else a user could pick, measured in one run on one topology.

The method is in README.md beside this file. Nothing here is imported by xskd, and nothing here may run
outside the namespaces of `lab`, change a setting of the machine, or leave a run out without saying so.
"""
