"""Proof under fire: a whole deployment, faults that are counted by effect, and checks that read what was done.

A round (`rounds`) has a deployment of its own (`deployment`), with a load (`load`) and triggers that write down every
change that PostgreSQL commits (`audit.sql`). Faults (`faults`) strike it; `history` reads what happened; and `checks`
compare that with what was promised, each check by a rule of its own.
"""
