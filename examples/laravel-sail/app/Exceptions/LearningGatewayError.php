<?php

namespace App\Exceptions;

use RuntimeException;

/**
 * What learning-gateway said went wrong. Branch on the class or on $errorCode, never on the message.
 *
 * LearningGatewayError          anything else, such as INTERNAL
 * ├── GatewayBusy               nothing was done; the same request may be sent again
 * ├── GatewayRefused            the request has to change: BAD_INPUT, UNAUTHENTICATED, FORBIDDEN, ...
 * └── ProviderFailed            the platform behind it: PROVIDER_UNAVAILABLE, REAUTH_REQUIRED, ...
 */
class LearningGatewayError extends RuntimeException
{
    final public function __construct(
        string $message,
        public readonly string $errorCode,
        public readonly ?string $providerId = null,
        public readonly bool $retryable = false,
        public readonly ?int $retryAfterSeconds = null,
    ) {
        parent::__construct($message);
    }

    /** Of one entry of GraphQL's errors, or of a problem document of the REST routes. */
    public static function from(string $message, array $details): self
    {
        $code = $details['code'] ?? 'INTERNAL';
        $class = match (true) {
            $code === 'GATEWAY_OVERLOADED' => GatewayBusy::class,
            $code === 'PROVIDER_NOT_FOUND' => GatewayRefused::class,
            str_starts_with($code, 'PROVIDER_'), $code === 'REAUTH_REQUIRED' => ProviderFailed::class,
            $code === 'INTERNAL' => self::class,
            default => GatewayRefused::class,
        };

        return new $class(
            $message,
            $code,
            $details['providerId'] ?? null,
            $details['retryable'] ?? false,
            $details['retryAfterSeconds'] ?? null,
        );
    }
}
