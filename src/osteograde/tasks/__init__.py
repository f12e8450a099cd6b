"""The tasks the kit knows. A task is a value (contract.py); adding one is adding its module here."""

from osteograde.tasks import knee_xray, lumbar_mr
from osteograde.tasks import spider_mr as spider
from osteograde.tasks.spec import Task

TASKS: dict[str, Task] = {task.name: task for task in (lumbar_mr.TASK, knee_xray.TASK, spider.TASK)}
