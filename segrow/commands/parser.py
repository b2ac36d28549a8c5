"""argparse that reports a mistake as one line."""

import argparse
import re
from typing import NoReturn

from ..errors import UserError, near

WORKERS_HELP = "processes that read images (default: 2; on a GPU as many as there are cores, at most 8)"


class OneLineParser(argparse.ArgumentParser):
    """Raises UserError instead of printing its usage; hints at the nearest option."""

    def error(self, message: str) -> NoReturn:
        """Raise.

        Raises:
            UserError: Always.
        """
        hint = ""
        if "unrecognized arguments: " in message:
            word = message.split("unrecognized arguments: ")[1].split()[0].split("=")[0]
            hint = near(word, [option for action in self._actions for option in action.option_strings])
        choice = re.search(r"invalid choice: '(.*?)' \(choose from (.*)\)", message)
        if choice:
            hint = near(choice[1], re.findall(r"[\w.-]+", choice[2]))
        if lone := re.search(r"argument (?:[^ ]*/)?(--[\w.-]+)[^:]*: expected one argument", message):
            hint = f" A value that begins with a dash is written {lone[1]}=-VALUE."
        raise UserError(f"{message}.{hint}" if hint else message)
