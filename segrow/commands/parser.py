"""argparse that reports a mistake as one line."""

import argparse
from typing import NoReturn

from ..errors import UserError, near


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
        raise UserError(f"{message}.{hint}" if hint else message)
