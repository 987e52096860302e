<?php

namespace App\Exceptions;

final class ProviderFailed extends LearningGatewayError
{
}
