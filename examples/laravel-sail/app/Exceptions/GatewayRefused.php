<?php

namespace App\Exceptions;

final class GatewayRefused extends LearningGatewayError
{
}
