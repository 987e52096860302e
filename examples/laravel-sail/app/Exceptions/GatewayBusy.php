<?php

namespace App\Exceptions;

final class GatewayBusy extends LearningGatewayError
{
}
