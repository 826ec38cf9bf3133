"""What stands here needs packages that the tests do not install; `nox -s zoo` runs it."""

collect_ignore_glob = ["*.py"]
