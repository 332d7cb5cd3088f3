"""Declares relayd's own checkers to strcred; they are listed by --help-auth."""

from relayd.auth.secret import SecretCheckerFactory
from relayd.auth.sqlite import SqliteCheckerFactory

secret = SecretCheckerFactory()
sqlite = SqliteCheckerFactory()
