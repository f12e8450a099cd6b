from osteograde.api import Graded as Graded
from osteograde.api import Grader as Grader
from osteograde.api import Image as Image
from osteograde.api import load as load
from osteograde.api import score as score
from osteograde.api import train as train
from osteograde.errors import UserError as UserError
