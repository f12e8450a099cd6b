"""The tasks the kit knows. A task is a value (contract.py); adding one is adding its module here."""

from osteograde.tasks.contract import Task
from osteograde.tasks.knee import task as knee_xray
from osteograde.tasks.lumbar import task as lumbar_mr
from osteograde.tasks.spider import task as spider

TASKS: dict[str, Task] = {task.name: task for task in (lumbar_mr.TASK, knee_xray.TASK, spider.TASK)}
