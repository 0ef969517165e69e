# Sourced last by path.sh: put here what only your machine needs.
