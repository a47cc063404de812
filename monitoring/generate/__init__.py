"""What operators look at, made from typed Python: rules, dashboard, provisioning.

`python -m monitoring.generate` from the top of the tree writes the files of this folder, `--check` only compares. Every
name of a metric and of a label is looked up in the registry of a gateway that is built for it; one that nothing writes
stops the generator.
"""
