"""What torch raises where it can't compile a program; its modules take long to import."""

from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import CppCompileError, InductorError, InvalidCxxCompiler

CANNOT_COMPILE = (TorchDynamoException, InductorError, CppCompileError, InvalidCxxCompiler)
